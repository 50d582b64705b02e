"""Durability. ``journal`` writes, ``queries`` reads, ``database`` opens; the only SQL of kbctl is here."""
