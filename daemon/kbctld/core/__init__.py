"""What is allowed, what it costs, what is left: pure functions and one in-memory ledger.

Nothing here reads a clock, a file, a socket or a random number; time, randomness and texts arrive as
arguments. Import contracts prove it. Errors are values (``Refusal``) where an agent caused them and
exceptions where a person's file or request did.
"""
