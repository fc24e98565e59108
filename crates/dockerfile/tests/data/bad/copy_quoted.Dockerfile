FROM a
COPY "with blank" /d/
