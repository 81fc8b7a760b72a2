"""Every option of a recipe, a file for each section, and the reflection that reads them."""
