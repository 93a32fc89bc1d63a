"""One short file a verb of the command line; a folder's listing is the registry."""
