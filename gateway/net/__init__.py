"""Accept and secure client connections: sockets, access control, limits, TLS, name lookup."""
