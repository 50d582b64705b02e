"""HTTP/1.1 as both planes speak it: a strict gate in front of an asyncio protocol.

``gate`` turns the bytes of one head into a value or a refusal; ``server`` owns connections, bodies,
deadlines and back-pressure. Neither knows a vendor, a key or money.
"""
