FROM a
RUN --mount=type=cache true
