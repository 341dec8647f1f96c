// Command grpcserver serves UpdateOrderPayment by grpc-go.
package main

import (
	"context"
	"errors"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	listingsv1 "listings.example/peers/gen/listings/v1"
	"listings.example/peers/internal/orders"
)

type server struct {
	listingsv1.UnimplementedOrderServiceServer
	store *orders.Store
}

func (s server) UpdateOrderPayment(
	ctx context.Context, request *listingsv1.UpdateOrderPaymentRequest,
) (*listingsv1.UpdateOrderPaymentResponse, error) {
	response, err := s.store.Update(ctx, request)
	var invalid orders.InvalidError
	switch {
	case err == nil:
		return response, nil
	case errors.As(err, &invalid):
		return nil, status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, orders.ErrNotFound):
		return nil, status.Error(codes.NotFound, err.Error())
	case errors.Is(err, orders.ErrKeyTaken):
		return nil, status.Error(codes.AlreadyExists, err.Error())
	}
	log.Print(err)
	return nil, status.Error(codes.Internal, "internal error")
}

func main() {
	orders.Run(func(store *orders.Store, listener net.Listener) func() {
		serving := grpc.NewServer()
		listingsv1.RegisterOrderServiceServer(serving, server{store: store})
		go func() {
			if err := serving.Serve(listener); err != nil {
				log.Fatal(err)
			}
		}()
		return serving.GracefulStop
	})
}
