"""The real things the tests talk to: processes, sshd, nginx, and the product's own programs."""
