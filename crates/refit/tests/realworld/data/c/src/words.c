#include <ctype.h>

#include "words.h"

unsigned long words(const char *text) {
    unsigned long count = 0;
    int inside = 0;
    for (; *text; text++) {
        int space = isspace((unsigned char)*text);
        count += !space && !inside;
        inside = !space;
    }
    return count;
}
