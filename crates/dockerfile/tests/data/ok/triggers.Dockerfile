FROM a
ONBUILD RUN true
onbuild copy --from=0 a b
ONBUILD RUN <<A
x
A
HEALTHCHECK --interval=1m30s --timeout=2.5s --start-period=0s --start-interval=500ms --retries=3 CMD curl -f http://localhost || exit 1
HEALTHCHECK CMD ["a", "b"]
HEALTHCHECK none
ENTRYPOINT []
CMD []
