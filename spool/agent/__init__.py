"""What spool_agent.py is made of: it runs at the company and holds the company's law."""
