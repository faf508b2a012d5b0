"""Models from hub, folder or package as `model` artifacts."""
