"""The control plane: the operator's API on the UNIX socket."""
