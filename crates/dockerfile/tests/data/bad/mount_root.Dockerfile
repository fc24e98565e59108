FROM a
WORKDIR /x
RUN --mount=type=tmpfs,target=.. true
