FROM a
USER 'open
