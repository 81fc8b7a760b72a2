"""Every option of a recipe, a file for each of its sections, and what is known of an option."""
