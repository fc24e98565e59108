FROM a
RUN --security=none true
