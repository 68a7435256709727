"""What tools/spoolctl is made of: the command line of module authors and operators."""
