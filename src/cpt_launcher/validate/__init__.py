"""Every mistake in files, before anything is rented."""
