"""What ssh_push.py is made of: the same job folder, carried by rsync over ssh."""
