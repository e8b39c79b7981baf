"""What people run instead of our server, each in an environment of its own, asked as ours is."""
