"""Bytes and times in, events and bytes out: no I/O, no clock, no logging, no asyncio."""
