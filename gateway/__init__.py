"""RFC 2217 gateway for ESP boards: flash and monitor them over the network, unmodified tools."""
