/* Gauges of what is counted anyway, elsewhere: they are looked at when
 * somebody looks at the counters, and cost nothing between. */
#ifndef TWI_GAUGES_H
#define TWI_GAUGES_H

/* Brings this process's cells up to date.  Any thread. */
void twi_gauges_sample(void);
/* In a forked child, whose lane begins at 0. */
void twi_gauges_forked(void);

#endif
