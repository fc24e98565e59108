FROM a AS one
FROM files AS ignored
FROM one AS two
FROM alpine
COPY --link --from=one --exclude=*.md --exclude=a/** a b
COPY --parents a/./b/*.c /dest/
ADD --unpack=false x.tar /
ADD --chmod=g+w --link=false x.tar /
COPY --from=alpine:latest /x /y
COPY --from=files . /
