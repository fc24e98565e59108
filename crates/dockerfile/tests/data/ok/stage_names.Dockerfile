FROM a AS same
FROM b AS SAME
FROM same AS scratch
COPY --from=same x y
FROM scratch
