"""The gateway and other serial-to-network servers, measured side by side: `make bench`."""
