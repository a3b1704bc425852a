"""A pyserial port on an RFC 2217 server: gateway://host:port. Imports nothing of the service."""
