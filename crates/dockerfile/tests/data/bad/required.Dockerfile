FROM a
ARG TOKEN
LABEL x="${TOKEN:?give a token}"
