"""Where the real secrets of vendors are kept: the OS keyring, or an encrypted file of our own.

A secret leaves this package only as a ``Secret``, never as text, and nothing here is called per request.
"""
