"""An environment that asks for words to be spelled backwards."""
