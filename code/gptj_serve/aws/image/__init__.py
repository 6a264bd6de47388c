"""The image: how it is built from the tree, pushed to a registry, and named."""
