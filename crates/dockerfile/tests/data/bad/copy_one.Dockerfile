FROM a
COPY only
