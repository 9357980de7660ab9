"""The whole daemon, from a client's connection to the upstream's reply."""
