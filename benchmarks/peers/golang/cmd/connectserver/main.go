// Command connectserver serves UpdateOrderPayment by connect-go: gRPC, gRPC-Web and Connect.
package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"

	"connectrpc.com/connect"

	listingsv1 "listings.example/peers/gen/listings/v1"
	"listings.example/peers/gen/listings/v1/listingsv1connect"
	"listings.example/peers/internal/orders"
)

type server struct {
	listingsv1connect.UnimplementedOrderServiceHandler
	store *orders.Store
}

func (s server) UpdateOrderPayment(
	ctx context.Context, request *connect.Request[listingsv1.UpdateOrderPaymentRequest],
) (*connect.Response[listingsv1.UpdateOrderPaymentResponse], error) {
	response, err := s.store.Update(ctx, request.Msg)
	var invalid orders.InvalidError
	switch {
	case err == nil:
		return connect.NewResponse(response), nil
	case errors.As(err, &invalid):
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	case errors.Is(err, orders.ErrNotFound):
		return nil, connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, orders.ErrKeyTaken):
		return nil, connect.NewError(connect.CodeAlreadyExists, err)
	}
	log.Print(err)
	return nil, connect.NewError(connect.CodeInternal, errors.New("internal error"))
}

func main() {
	orders.Run(func(store *orders.Store, listener net.Listener) func() {
		mux := http.NewServeMux()
		mux.Handle(listingsv1connect.NewOrderServiceHandler(server{store: store}))
		protocols := new(http.Protocols)
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		serving := &http.Server{Handler: mux, Protocols: protocols}
		go func() {
			if err := serving.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				log.Fatal(err)
			}
		}()
		return func() { _ = serving.Shutdown(context.Background()) }
	})
}
