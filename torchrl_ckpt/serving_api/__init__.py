"""The HTTP interface of the inference server: protocol, client, keys, and the listening socket."""
