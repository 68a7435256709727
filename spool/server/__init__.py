"""What the bottle application of spool_server.py is made of."""
