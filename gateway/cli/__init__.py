"""The command `esp-gateway`: one parser in `main`, one module for each family of commands."""
