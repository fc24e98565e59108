FROM scratch
MAINTAINER somebody@example.com
ENV A=1 B="two words" C='$A' D=$A
ENV OLD style value
LABEL one=1 "two words"="x $A" three=a\ b
EXPOSE 80 443/tcp 53/UDP 8000-8002
VOLUME /data /more
VOLUME ["/json one", "/json two"]
USER $A:$D
WORKDIR /srv
WORKDIR deeper/../other
STOPSIGNAL SIGINT
SHELL ["/bin/bash", "-ec"]
ENTRYPOINT exec top
CMD ["-b"]
