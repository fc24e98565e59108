FROM a
CMD --version
