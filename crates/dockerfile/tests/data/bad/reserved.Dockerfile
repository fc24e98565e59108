FROM a AS scratch
