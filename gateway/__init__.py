"""RFC 2217 gateway for ESP boards: flash and monitor them over the network, unmodified tools."""

#: Here rather than asked of the installed package: `importlib.metadata` takes 3 MB of memory and
#: 20 ms at each start.
__version__ = "0.1.0"
