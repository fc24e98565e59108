FROM a
RUN --device=vendor/class=all true
