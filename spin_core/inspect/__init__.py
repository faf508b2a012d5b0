"""Looking without running: `spinflow check` and `spinflow doctor`."""
