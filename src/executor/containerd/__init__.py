"""containerd: its client, its private daemon, and the runtime that is built on them."""
