"""Telling people: alerts, and what is wrong with the daemon, by mail, chat or webhook."""
