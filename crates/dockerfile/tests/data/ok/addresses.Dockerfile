FROM scratch
ARG HOST=example.com
ARG SUM=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
WORKDIR /srv
ADD https://$HOST/a/b%20c?x=1#y local http://me:secret@${HOST}:80/[x]* to/
ADD --checksum=sha256:${SUM} --unpack --chown=1:2 --chmod=0644 https://token@h/archive.tar.gz /
ADD --unpack=false --link https://h <<END /
text
END
ADD HTTP://h/x /
ONBUILD ADD https://me:secret@h/x /
