"""The HTTP server: the ports as JSON, their output as it comes, a console, the page."""
