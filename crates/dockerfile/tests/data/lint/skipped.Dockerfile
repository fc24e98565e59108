# check=skip=StageNameCasing;experimental=all
# no description
ARG A
FROM scratch AS Base
# check=skip=all // only here
MAINTAINER somebody
MAINTAINER else
#
ARG B
# check=experimental=x
ENV password=1
