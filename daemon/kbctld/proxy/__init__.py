"""The data plane: one exchange, top to bottom (``exchange``), and the one way out (``upstream``)."""
