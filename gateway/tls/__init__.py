"""TLS: certificates and keys of the operator's, handshakes, and the connection behind one."""
