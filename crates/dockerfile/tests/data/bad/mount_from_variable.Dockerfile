FROM a
RUN --mount=from=$x,target=/x true
