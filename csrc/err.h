/* Codes to names and texts.  A code is a positive errno or one of TW_*. */
#ifndef TWI_ERR_H
#define TWI_ERR_H

/* Static strings; "" for an unknown code. */
const char *twi_err_name(int code);
const char *twi_err_text(int code);

#endif
